"""What a request means in the protocols that hide their operation in the body, one file each."""
