"""Apache Kafka and Valkey as child processes of this machine: the default for development, tests and demos."""
