-- Count, sum and mean over three windows: prefix sums per user, looked up at the four window ends by one ASOF join.
WITH prefix AS MATERIALIZED (
  SELECT user_id, ts,
    sum(n) OVER (PARTITION BY user_id ORDER BY ts) AS n,
    sum(s) OVER (PARTITION BY user_id ORDER BY ts) AS s
  FROM {tiles}
), ends AS (
  SELECT row_id, user_id, unnest([0, 1, 7, 30]) AS days, edge FROM '{folder}/spine.parquet'
), found AS (
  SELECT e.row_id, e.days, coalesce(p.n, 0) AS n, coalesce(p.s, 0) AS s
  FROM (SELECT row_id, user_id, days, edge - to_days(CAST(days AS INTEGER)) AS until FROM ends) e
  ASOF LEFT JOIN prefix p ON p.user_id = e.user_id AND p.ts < e.until
), sides AS (
  SELECT row_id,
    max(n) FILTER (days = 0) AS n0, max(n) FILTER (days = 1) AS n1,
    max(n) FILTER (days = 7) AS n7, max(n) FILTER (days = 30) AS n30,
    max(s) FILTER (days = 0) AS s0, max(s) FILTER (days = 1) AS s1,
    max(s) FILTER (days = 7) AS s7, max(s) FILTER (days = 30) AS s30
  FROM found GROUP BY row_id
)
SELECT row_id,
  CAST(n0 - n1 AS BIGINT) AS v_count_1, CAST(n0 - n7 AS BIGINT) AS v_count_7, CAST(n0 - n30 AS BIGINT) AS v_count_30,
  CASE WHEN n0 > n1 THEN s0 - s1 END AS v_sum_1,
  CASE WHEN n0 > n7 THEN s0 - s7 END AS v_sum_7,
  CASE WHEN n0 > n30 THEN s0 - s30 END AS v_sum_30,
  CASE WHEN n0 > n1 THEN (s0 - s1) / (n0 - n1) END AS v_mean_1,
  CASE WHEN n0 > n7 THEN (s0 - s7) / (n0 - n7) END AS v_mean_7,
  CASE WHEN n0 > n30 THEN (s0 - s30) / (n0 - n30) END AS v_mean_30
FROM sides
ORDER BY row_id
