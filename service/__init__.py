"""What goes over the wire: capability servers, authority, the server, and the clients."""
