//! basert
