"""The clauses, a module for each part of the handshake; services.handshake.trace.table has all."""
