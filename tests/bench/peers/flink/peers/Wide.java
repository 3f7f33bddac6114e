package peers;
/** An event with 14 further fields of 8 bytes, which no compression of files makes smaller. */
public class Wide {
  public long user; public double amount;
  public long v0, v1, v2, v3, v4, v5, v6, v7, v8, v9, v10, v11, v12, v13;
  public Wide() {}
  public Wide(long i, long keys) {
    user = Gen.user(i, keys); amount = Gen.amount(i);
    final long a = 0x9E3779B97F4A7C15L;
    v0 = i * (a + 0); v1 = i * (a + 2); v2 = i * (a + 4); v3 = i * (a + 6); v4 = i * (a + 8); v5 = i * (a + 10); v6 = i * (a + 12); v7 = i * (a + 14); v8 = i * (a + 16); v9 = i * (a + 18); v10 = i * (a + 20); v11 = i * (a + 22); v12 = i * (a + 24); v13 = i * (a + 26);
  }
  /** The first event of a key with another sum: what Flink's own sum of a field keeps. */
  public Wide with(double sum) {
    Wide w = new Wide(); w.user = user; w.amount = sum;
    w.v0 = v0; w.v1 = v1; w.v2 = v2; w.v3 = v3; w.v4 = v4; w.v5 = v5; w.v6 = v6; w.v7 = v7; w.v8 = v8; w.v9 = v9; w.v10 = v10; w.v11 = v11; w.v12 = v12; w.v13 = v13;
    return w;
  }
}
