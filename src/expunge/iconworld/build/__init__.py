"""The recipe of the built-in model: `python -m expunge.iconworld.build` draws its pictures and trains its networks."""
