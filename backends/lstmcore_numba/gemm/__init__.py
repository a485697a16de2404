"""Matrix products: the microkernels, and the operands that they read."""
