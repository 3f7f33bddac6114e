package peers;
import org.apache.flink.api.common.accumulators.LongCounter;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.*;
import org.apache.flink.api.common.typeinfo.*;
import org.apache.flink.api.java.tuple.*;
import org.apache.flink.connector.datagen.source.*;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.co.ProcessJoinFunction;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import org.apache.flink.util.Collector;
import java.time.Duration;
/** Two streams with half of the events each, joined by key: join=interval (within 5 s) or join=window (10 s, tumbling). */
public class W4 {
  static class Near extends ProcessJoinFunction<Event,Event,Tuple3<Long,Double,Long>>{
    public void processElement(Event l,Event r,Context c,Collector<Tuple3<Long,Double,Long>> o){ o.collect(Tuple3.of(l.user,l.amount+r.amount,l.ts)); }
  }
  static class Same implements JoinFunction<Event,Event,Tuple3<Long,Double,Long>>{
    public Tuple3<Long,Double,Long> join(Event l,Event r){ return Tuple3.of(l.user,l.amount+r.amount,l.ts); }
  }
  static class Cnt extends RichFilterFunction<Tuple3<Long,Double,Long>>{
    LongCounter rows=new LongCounter();
    public void open(OpenContext c){getRuntimeContext().addAccumulator("rows",rows);}
    public boolean filter(Tuple3<Long,Double,Long> t){rows.add(1);return true;}
  }
  static DataStream<Event> stream(StreamExecutionEnvironment env,String name,long first,long n,long keys){
    var src=new DataGeneratorSource<Event>(j->{ long i=Gen.inter(j,n); return new Event(Gen.user(i+first,keys),Gen.amount(i+first),Gen.ts(i)); },n,TypeInformation.of(Event.class));
    return env.fromSource(src,WatermarkStrategy.<Event>forBoundedOutOfOrderness(Duration.ofSeconds(5)).withTimestampAssigner((e,t)->e.ts),name);
  }
  public static void main(String[] a) throws Exception {
    var m=Util.args(a); long n=Long.parseLong(m.getOrDefault("n","10000000")); long keys=Long.parseLong(m.getOrDefault("keys","1000000"));
    int reps=Integer.parseInt(m.getOrDefault("reps","1"));
    for(int r=0;r<reps;r++){
    var env=Util.env(m);
    var left=stream(env,"left",0,n/2,keys); var right=stream(env,"right",1L<<40,n/2,keys);
    DataStream<Tuple3<Long,Double,Long>> pairs = m.get("join").equals("interval")
      ? left.keyBy(e->e.user,Types.LONG).intervalJoin(right.keyBy(e->e.user,Types.LONG)).between(Duration.ofSeconds(-5),Duration.ofSeconds(5)).process(new Near())
      : left.join(right).where(e->e.user,Types.LONG).equalTo(e->e.user,Types.LONG).window(TumblingEventTimeWindows.of(Duration.ofSeconds(10))).apply(new Same());
    pairs.filter(new Cnt()).sinkTo(new DiscardingSink<>());
    Clock ck=new Clock(); var res=env.execute("w4"); double t=res.getNetRuntime()/1000.0;
    System.out.println(ck.done("w4-java "+m,r,t,n)+" rows="+res.getAccumulatorResult("rows"));
    }
  }
}
