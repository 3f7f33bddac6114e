package peers;

import java.io.BufferedOutputStream;
import java.io.DataOutputStream;
import java.io.FileOutputStream;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiterStrategy;
import org.apache.flink.connector.datagen.source.DataGeneratorSource;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.util.Collector;

/**
 * The same work as programs/latency.py: rate= seconds= timeout=MS keys= p= file=OUT. OUT gets, for each event, two
 * big-endian longs: when it was made and how long it took to its sink, in nanoseconds.
 */
public final class Latency {
  /** Of this JVM, which is the whole cluster. */
  private static long[] made;

  private static long[] took;
  private static final AtomicInteger NEXT = new AtomicInteger();

  static final class Count extends KeyedProcessFunction<Long, Event, Event> {
    private transient ValueState<Long> state;

    @Override
    public void open(OpenContext context) {
      state = getRuntimeContext().getState(new ValueStateDescriptor<>("count", Types.LONG));
    }

    @Override
    public void processElement(Event event, Context context, Collector<Event> out) throws Exception {
      Long before = state.value();
      long count = before == null ? 1 : before + 1;
      state.update(count);
      out.collect(new Event(event.user, count, event.ts));
    }
  }

  public static void main(String[] args) throws Exception {
    var options = Util.args(args);
    long rate = Long.parseLong(options.get("rate"));
    long count = rate * Long.parseLong(options.get("seconds"));
    long keys = Long.parseLong(options.get("keys"));
    made = new long[(int) count];
    took = new long[(int) count];
    var source =
        new DataGeneratorSource<Event>(
            i -> new Event(Gen.user(i, keys), 0, System.nanoTime()),
            count,
            RateLimiterStrategy.perSecond(rate),
            TypeInformation.of(Event.class));
    var env = Util.env(options);
    env.setBufferTimeout(Long.parseLong(options.get("timeout")));
    env.fromSource(source, WatermarkStrategy.noWatermarks(), "generator")
        .keyBy(event -> event.user, Types.LONG)
        .process(new Count())
        .filter(
            event -> {
              long now = System.nanoTime();
              int at = NEXT.getAndIncrement();
              made[at] = event.ts;
              took[at] = now - event.ts;
              return true;
            })
        .sinkTo(new DiscardingSink<>());
    env.execute("latency");
    try (var out = new DataOutputStream(new BufferedOutputStream(new FileOutputStream(options.get("file"))))) {
      for (int i = 0; i < NEXT.get(); i++) {
        out.writeLong(made[i]);
        out.writeLong(took[i]);
      }
    }
  }
}
