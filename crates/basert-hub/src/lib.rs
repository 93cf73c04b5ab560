//! basert-hub
