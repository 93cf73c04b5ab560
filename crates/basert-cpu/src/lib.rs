//! basert-cpu
