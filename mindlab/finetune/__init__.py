"""Records to LLaMA-Factory and back: data sets, configs, training, adapters, what it takes."""
