#![cfg_attr(fuzzing, no_main)]

bureau_fuzz::target!(config);
