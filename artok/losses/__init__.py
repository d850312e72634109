"""What training minimises beside a model's own terms."""
