"""The processes of a launch: starting them, collectives, detecting a lost rank, stopping."""
