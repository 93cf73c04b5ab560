//! basert-testkit
