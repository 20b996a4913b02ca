"""How an ensemble moves: placement, transport, exact moves and their adaptation."""
