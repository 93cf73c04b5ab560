//! basert-engine
