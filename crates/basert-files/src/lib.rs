//! basert-files
