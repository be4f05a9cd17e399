-- Aggregates over several windows: one range join of the spine with events or tiles, then one GROUP BY.
SELECT s.row_id,
  {features}
FROM '{folder}/spine.parquet' s
LEFT JOIN {rows} e ON e.user_id = s.user_id AND e.ts >= s.edge - INTERVAL {widest} DAY AND e.ts < s.edge
GROUP BY s.row_id
ORDER BY s.row_id
