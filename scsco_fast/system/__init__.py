"""What every part stands on: files and locks, optional packages."""
