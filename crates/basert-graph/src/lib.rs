//! basert-graph
