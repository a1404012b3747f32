"""capstore: capability-based storage over Cap'n Proto RPC."""
