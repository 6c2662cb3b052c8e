"""How near to the edge of stability one step of a run came."""
