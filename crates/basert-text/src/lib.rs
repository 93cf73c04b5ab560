//! basert-text
