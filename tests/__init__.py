"""The proofs. `unit/` mirrors the tree; `contract/` is what every store must do; `flows/` are whole stories over real
sockets and processes; `security/` attacks; `docs/` holds the README to its word; `architecture/` keeps the house in
shape; `conformance/` runs MCP's official suite; `bench/` measures and asserts nothing.
"""
