"""What training does to gradients, updates, weights and single samples."""
