"""How a run goes: a parent starts a child, which trains by the protocol and measures."""
