"""What a user types: --optim padam, its optim_args, the plugin's options, the launcher."""
