"""The service beside what a user could pick instead: `make bench`."""
