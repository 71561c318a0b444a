"""What is measured, and the processes in which it is measured."""
