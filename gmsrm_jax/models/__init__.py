"""The networks of GM-SRM: pure Linen modules, one concept per file; `inpainter` puts them together."""
