"""NETWORKS: one readable file a network, behind one interface."""
