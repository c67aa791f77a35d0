"""What a bundle is: manifest, recipe, target profiles, bindings, compatibility and golden answers.

Pure rules and values; nothing here reads a store or runs a model.
"""
