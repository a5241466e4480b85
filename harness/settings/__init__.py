"""What was asked: typed settings, their checks, the cells they come to, names and sentences."""
