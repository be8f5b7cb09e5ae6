"""What every other room may use: files that survive a kill, error messages, random streams, placement of agents on processes.

Import any of its modules from anywhere. It imports nothing of this project.
"""
