"""The testbed as benchmarks: the general scorers on scenes, truth and questions of its own."""
