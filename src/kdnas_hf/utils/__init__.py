"""What any folder may use, and no folder owns: files, command lines, tokenizers, this machine."""
