"""What parameter files say: records of their blocks, read and checked."""
