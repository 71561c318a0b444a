"""The command `fanin`."""
