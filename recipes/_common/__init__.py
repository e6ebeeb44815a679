"""What the recipes share: options, data, the offline checkpoint, LoRA, the run and its summary."""
