"""What a design costs, counted on the meta device: shapes without numbers."""
