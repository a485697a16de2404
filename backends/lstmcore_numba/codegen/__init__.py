"""Code generation: vector code as LLVM, step functions, and compilation."""
