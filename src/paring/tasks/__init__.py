"""What is trained and scored on: small tasks made of what is installed, without a download."""
