"""What a run says of itself while it trains: log windows, throughput, the metrics file and who follows it."""
