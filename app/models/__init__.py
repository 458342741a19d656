"""Models: what a bundle declares, its files on disk, its network, and the network loaded on a device."""
