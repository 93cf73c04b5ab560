//! basert-plan
