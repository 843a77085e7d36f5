"""What is learned: the seam to training, and the steps that sums make."""
