//! Graphs, layers and backprop over the kernels.
