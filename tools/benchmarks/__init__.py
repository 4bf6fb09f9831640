"""The measurements behind `./tools/bench`: one module per name."""
