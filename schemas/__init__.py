"""The contract: schemas, the Confluent frame, and the columnar Avro codec."""
