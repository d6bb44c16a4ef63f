"""Messages and stubs of Porthole's services: `porthole.<service>.v1`, generated from protos/.

Knows nothing of the services' own code.
"""
