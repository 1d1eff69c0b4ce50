"""What any of our processes has to do with the system: environment, threads, logs, signs of life."""
