package peers;

import java.io.FileWriter;
import java.util.Arrays;
import java.util.Random;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.connector.source.util.ratelimit.RateLimiterStrategy;
import org.apache.flink.connector.datagen.source.DataGeneratorSource;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.util.Collector;

/**
 * The same work as programs/keyed_state.py: byte arrays by key, each key written once, then only the first "hot" ones.
 * keys= value= rate= hot= parallelism= beat=FILE, which gets a line "epoch-ms subtask index" at most every 50 ms.
 */
public final class KeyedState {
  static final class Update extends KeyedProcessFunction<Long, Event, Long> {
    private final int valueBytes;
    private final String beat;
    private transient ValueState<byte[]> state;
    /** Pieces of it do not compress, and are made as quickly as zeros. */
    private transient byte[] noise;

    private transient FileWriter writer;
    private transient long last;
    private transient int subtask;

    Update(int valueBytes, String beat) {
      this.valueBytes = valueBytes;
      this.beat = beat;
    }

    @Override
    public void open(OpenContext context) throws Exception {
      state = getRuntimeContext().getState(new ValueStateDescriptor<>("value", byte[].class));
      subtask = getRuntimeContext().getTaskInfo().getIndexOfThisSubtask();
      noise = new byte[valueBytes + (1 << 20)];
      new Random().nextBytes(noise);
      writer = new FileWriter(beat, true);
    }

    @Override
    public void processElement(Event event, Context context, Collector<Long> out) throws Exception {
      int start = (int) ((event.ts * 0x9E3779B1L) & 0xFFFFF);
      byte[] value = Arrays.copyOfRange(noise, start, start + valueBytes);
      state.update(value);
      long now = System.currentTimeMillis();
      if (now - last >= 50) {
        last = now;
        writer.write(now + " " + subtask + " " + event.ts + "\n");
        writer.flush();
      }
      out.collect(event.user);
    }
  }

  public static void main(String[] args) throws Exception {
    var options = Util.args(args);
    long keys = Long.parseLong(options.get("keys"));
    long hot = Long.parseLong(options.get("hot"));
    long rate = Long.parseLong(options.get("rate"));
    var source =
        new DataGeneratorSource<Event>(
            i -> new Event(i < keys ? i : i % hot, 0, i),
            Long.MAX_VALUE,
            RateLimiterStrategy.perSecond(rate),
            TypeInformation.of(Event.class));
    var env = StreamExecutionEnvironment.getExecutionEnvironment();
    env.setParallelism(Integer.parseInt(options.getOrDefault("parallelism", "1")));
    env.fromSource(source, WatermarkStrategy.noWatermarks(), "generator")
        .keyBy(event -> event.user, Types.LONG)
        .process(new Update(Integer.parseInt(options.get("value")), options.get("beat")))
        .uid("state")
        .sinkTo(new DiscardingSink<>());
    System.out.println("JOB " + env.executeAsync("keyed state").getJobID());
  }
}
